# SPDX-License-Identifier: Apache-2.0
"""What SGLang asks of Mooncake's transfer engine, over sockets of one host, for hosts without RDMA and its libraries.

Put this folder's parent on PYTHONPATH and SGLang's ``--disaggregation-transfer-backend mooncake`` moves its bytes with it:
addresses of host memory, and of CUDA devices where there are any.
"""

import ctypes
import socket
import struct
import threading

import torch

HEADER, RUN = struct.Struct("<Q"), struct.Struct("<QQ")


def _copy(to: int, start: int, size: int) -> None:
    """Copy bytes between addresses of the host or of devices."""
    if not torch.cuda.is_available():
        ctypes.memmove(to, start, size)
        return
    runtime = ctypes.CDLL(f"libcudart.so.{torch.version.cuda.split('.')[0]}")  # torch has loaded it
    by_address = 4
    error = runtime.cudaMemcpy(ctypes.c_void_p(to), ctypes.c_void_p(start), ctypes.c_size_t(size), by_address)
    if error:
        raise RuntimeError(f"cudaMemcpy of {size} bytes: error {error}")


def _receive(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if not got:
            raise ConnectionError("the other side closed the connection")
        view = view[got:]
    return data


class TransferEngine:
    """One end: it writes into the registered memory of others, whose threads copy what arrives."""

    def initialize(self, hostname, metadata_server, protocol, device_name) -> int:
        self.regions = {}
        self.server = socket.create_server((hostname, 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return 0

    def get_rpc_port(self) -> int:
        return self.server.getsockname()[1]

    def register_memory(self, address, size) -> int:
        self.regions[address] = size
        return 0

    def batch_register_memory(self, addresses, sizes) -> int:
        self.regions.update(zip(addresses, sizes))
        return 0

    def unregister_memory(self, address) -> int:
        return 0 if self.regions.pop(address, None) else -1

    def batch_unregister_memory(self, addresses) -> int:
        return min((self.unregister_memory(address) for address in addresses), default=0)

    def transfer_sync_write(self, session, address, peer_address, size) -> int:
        return self.batch_transfer_sync_write(session, [address], [peer_address], [size])

    def batch_transfer_sync_write(self, session, addresses, peer_addresses, sizes) -> int:
        """Write runs of bytes into the memory of the engine ``host:port``: 0, or -1 if it took none."""
        host, port = session.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(HEADER.pack(len(sizes)))
            for address, peer_address, size in zip(addresses, peer_addresses, sizes, strict=True):
                data = bytearray(size)
                _copy(ctypes.addressof((ctypes.c_char * size).from_buffer(data)), address, size)
                connection.sendall(RUN.pack(peer_address, size))
                connection.sendall(data)
            return 0 if connection.recv(1) == b"1" else -1

    def _serve(self):
        while True:
            connection, _ = self.server.accept()
            threading.Thread(target=self._take, args=(connection,), daemon=True).start()

    def _take(self, connection):
        with connection:
            [runs] = HEADER.unpack(_receive(connection, HEADER.size))
            for _ in range(runs):
                address, size = RUN.unpack(_receive(connection, RUN.size))
                data = _receive(connection, size)
                if not any(a <= address and address + size <= a + n for a, n in self.regions.items()):
                    connection.sendall(b"0")
                    return
                _copy(address, ctypes.addressof((ctypes.c_char * size).from_buffer(data)), size)
            connection.sendall(b"1")
