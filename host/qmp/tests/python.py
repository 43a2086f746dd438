"""Drives the example server through qemu.qmp, the client library of the QEMU project."""

import asyncio
import sys

from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError
from qemu.qmp.qmp_client import ExecuteError


async def main(path):
    client = QMPClient("test")
    await client.connect(path)
    assert client.greeting.QMP.version["qemu"] == {"micro": 2, "minor": 0, "major": 10}
    assert await client.execute("query-name") == {"name": "example"}
    names = {command["name"] for command in await client.execute("query-commands")}
    assert {"query-name", "quit", "stop"} <= names, names
    try:
        await client.execute("query-name", {"bogus": 1})
        raise SystemExit("an error was expected")
    except ExecuteError as error:
        assert str(error) == "Parameter 'bogus' is unexpected", error
    with client.listener(("STOP", "SHUTDOWN")) as events:
        await client.execute("stop")
        assert (await events.get())["event"] == "STOP"
        await client.execute("quit")
        assert (await events.get())["data"]["reason"] == "host-qmp-quit"
    try:
        await client.disconnect()
    except (QMPError, EOFError):
        pass  # the server has closed the connection first
    print("all is well")


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 60))
