"""Drives a TES server with a stock py-tes client: create, wait, every view, list, cancel.

Usage: check.py VERSION, with TESK_SERVER and TESK_FILES (a directory the server allows).
"""

import os
import sys
import time

import tes

VERSION = sys.argv[1]
SERVER = os.environ["TESK_SERVER"]
FILES = os.environ["TESK_FILES"]


def task(command, name, **more):
    executors = [tes.Executor(image="busybox:1.37", command=command, **more)]
    return tes.Task(
        name=name,
        inputs=[tes.Input(url=f"file://{FILES}/input.txt", path="/data/input.txt", type="FILE")],
        outputs=[tes.Output(url=f"file://{FILES}/{name}.txt", path="/data/out.txt", type="FILE")],
        executors=executors,
        tags={"client": f"py-tes-{VERSION}"},
    )


def state(client, task_id):
    """The state of a task. py-tes 0.4 does not know CANCELING and refuses to read it."""
    try:
        return client.get_task(task_id, "MINIMAL").state
    except tes.utils.UnmarshalError as error:
        if VERSION.startswith("0.4") and "CANCELING" in str(error):
            return "CANCELING"
        raise


def becomes(client, task_id, wanted, seconds=30):
    deadline = time.time() + seconds
    while state(client, task_id) != wanted:
        assert time.time() < deadline, f"{task_id} did not become {wanted}"
        time.sleep(0.1)


def main():
    client = tes.HTTPClient(SERVER, timeout=10)

    info = client.get_service_info()
    assert info.name, info

    sort = task(["sort", "-r", "/data/input.txt"], f"sorted-{VERSION}", stdout="/data/out.txt")
    created = client.create_task(sort)
    done = client.wait(created, timeout=60)
    assert done.state == "COMPLETE", done
    with open(f"{FILES}/sorted-{VERSION}.txt", encoding="utf-8") as output:
        assert output.read() == "two\none\n"

    full = client.get_task(created, "FULL")
    assert full.name == sort.name and full.tags == sort.tags, full
    assert full.logs[0].logs[0].exit_code == 0, full.logs
    assert full.logs[0].logs[0].stdout == "two\none\n", full.logs
    assert int(full.logs[0].outputs[0].size_bytes) == 8, full.logs
    basic = client.get_task(created, "BASIC")
    assert not basic.logs[0].logs[0].stdout, basic.logs
    minimal = client.get_task(created, "MINIMAL")
    assert minimal.state == "COMPLETE" and not minimal.executors, minimal

    slow = client.create_task(task(["sleep", "60"], f"slow-{VERSION}"))
    becomes(client, slow, "RUNNING")
    client.cancel_task(slow)
    becomes(client, slow, "CANCELED")
    client.cancel_task(slow)

    first = client.list_tasks(view="BASIC", page_size=1)
    assert len(first.tasks) == 1 and first.next_page_token, first
    assert first.tasks[0].id == slow, "the newest comes first"
    second = client.list_tasks(view="BASIC", page_size=1, page_token=first.next_page_token)
    assert second.tasks[0].id == created, second

    print(f"py-tes {VERSION}: created, waited, read, listed, canceled")


main()
