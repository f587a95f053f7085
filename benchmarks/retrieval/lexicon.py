# SPDX-License-Identifier: Apache-2.0
"""The words of the suite: filler sentences, names that are asked for, and words that are counted.

Names and counted words are made of syllables and have no meaning, so that nothing but the text answers a question.
The three lists have no word in common.
"""

from __future__ import annotations

import random

ADJECTIVES = """
amber ancient autumn bitter blue brave bright broad broken calm clean clever cold common crooked curious dark deep
distant dusty early eastern empty faint famous fast fierce flat fresh gentle golden grand gray green happy heavy hidden
hollow honest hot humble idle iron jolly keen kind large late lazy little lonely long loud lucky mellow mild modest
narrow neat new noble northern odd old open pale patient plain polite proud quiet quick rapid rare red rich rough round
rusty scarlet shallow sharp short shy silent silver simple slow small smooth soft solid southern steady steep stern
still stormy straight strange strong sturdy sunny sweet tall tame thin tidy tiny tired upper vast warm weary western
white wide wild wise wooden young
""".split()

NOUNS = """
apple archer artist baker barn basket bear bell bench bird boat book bottle bridge brook bucket builder butter candle
captain carpet carriage cart castle cat cellar chair cherry child clock cloud coat cook corner cottage cousin cow
crow curtain dancer desk doctor dog donkey door dragon drum eagle engine farmer feather fence fiddle field fisher flag
flower forest fountain fox garden gate goat goose grape guard guest hammer harbor hat hawk hill horse hunter island
judge kettle king kite ladder lamp lantern letter lion lizard market meadow melon merchant miller mirror monk mountain
mouse nurse oak ocean orchard otter owl painter palace paper parrot pear pepper piano pilot pine pipe plum pocket poet
pond porter potter queen rabbit raven ribbon river road robin roof rope sailor saddle school shepherd ship shoe
singer smith soldier sparrow spoon squirrel stable statue stone stove student swan table tailor teacher temple tiger
tower trader train tree trumpet turtle uncle valley village violin wagon waiter wall walnut weaver well whale wheel
widow window wolf writer
""".split()

VERBS = """
admires answers asks avoids blames borrows brings builds buries buys calls carries chases cleans climbs collects
counts covers crosses describes draws drops enjoys enters examines fears feeds fetches finds fixes follows forgets gathers
greets guards guides hears helps hides holds ignores invites joins keeps kicks knows leaves lifts likes loses measures
meets misses moves names needs notices offers opens orders paints passes pays praises protects pulls pushes reaches
reads recalls repairs requests returns saves sees sells sends serves shakes shows sketches steals studies takes
teaches thanks throws touches trusts visits wants warns washes watches
""".split()

PLACES = """
above across after against along among around before behind below beneath beside beyond by during inside near outside
over past through toward under until upon within without
""".split()

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


def _made_of_syllables(count: int, shape: str, seed: int, taken: set[str]) -> list[str]:
    """``count`` different words of a shape such as CVCV, always the same; none of ``taken``."""
    pick = random.Random(seed)
    words: list[str] = []
    while len(words) < count:
        word = "".join(pick.choice(_CONSONANTS if c == "C" else _VOWELS) for c in shape)
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words


_taken = {*ADJECTIVES, *NOUNS, *VERBS, *PLACES}
_taken |= set(
    """
a all an and another answer are be been by copied copy directly does fill fills fit for given here hold how in into is
it key keys list many most name now of often on once one only or pass question read remember said set text that the
then these they three through to use uses variable variables was what which who with word words
""".split()
)

# Owners of pass keys, and variables.
NAMES = tuple(_made_of_syllables(400, "CVCV", 1, _taken))
# What the counting tasks count.
COUNTED = tuple(_made_of_syllables(64, "CVCVC", 2, _taken))
