"""Drives a cluster with python-etcd3, which speaks to one member. Arguments: endpoints, separated by commas."""

import hashlib
import io
import sys
import threading
import time

import etcd3


def check(holds, told=""):
    if not holds:
        raise AssertionError(told)


def kv(client):
    first = client.put("kv/a", "1")
    check(first.header.revision > 0)
    client.put("kv/b", "2")
    check(client.put("kv/a", "3", prev_kv=True).prev_kv.value == b"1")
    value, meta = client.get("kv/a")
    check((value, meta.key, meta.version, meta.lease_id) == (b"3", b"kv/a", 2, 0), (value, meta))
    check(client.get("kv/none") == (None, None))
    pairs = [(meta.key, value) for value, meta in client.get_prefix("kv/", sort_order="descend", sort_target="key")]
    check(pairs == [(b"kv/b", b"2"), (b"kv/a", b"3")], pairs)
    check([value for value, _ in client.get_range("kv/a", "kv/b")] == [b"3"])
    check(len(list(client.get_prefix("kv/", keys_only=True))) == 2)
    check(client.replace("kv/a", "3", "4") and not client.replace("kv/a", "3", "5"))
    check(not client.put_if_not_exists("kv/a", "5") and client.put_if_not_exists("kv/c", "6"))
    check(client.delete("kv/c") and not client.delete("kv/c"))
    check(client.delete_prefix("kv/").deleted == 2)


def txn(client):
    client.put("txn/a", "1")
    transactions = client.transactions
    ok, responses = client.transaction(
        compare=[
            transactions.value("txn/a") == "1",
            transactions.version("txn/a") > 0,
            transactions.create("txn/none") == "0",
            transactions.mod("txn/a") != "0",
        ],
        success=[transactions.put("txn/a", "2"), transactions.get("txn/a")],
        failure=[transactions.delete("txn/a")],
    )
    check(ok and responses[1][0][0] == b"2", responses)
    inner = transactions.txn(
        compare=[transactions.value("txn/a") == "2"], success=[transactions.delete("txn/a")], failure=[]
    )
    ok, responses = client.transaction(
        compare=[transactions.version("txn/a") == 7], success=[], failure=[transactions.get("txn/a"), inner]
    )
    check(not ok and responses[0][0][0] == b"2", responses)
    check(client.get("txn/a") == (None, None))


def watch(client):
    first = client.put("watch/a", "1").header.revision
    events, cancel = client.watch_prefix("watch/", start_revision=first, prev_kv=True)
    client.put("watch/a", "2")
    client.delete("watch/a")
    seen = []
    for event in events:
        seen.append((type(event).__name__, event.key, event.value, event.prev_value))
        if len(seen) == 3:
            cancel()
    expected = [
        ("PutEvent", b"watch/a", b"1", b""),
        ("PutEvent", b"watch/a", b"2", b"1"),
        ("DeleteEvent", b"watch/a", b"", b"2"),
    ]
    check(seen == expected, seen)
    called = threading.Event()
    number = client.add_watch_callback("watch/b", lambda response: called.set())
    client.put("watch/b", "x")
    check(called.wait(20))
    client.cancel_watch(number)
    compacted = client.put("watch/c", "1").header.revision
    client.put("watch/c", "2")
    client.compact(compacted + 1, physical=True)
    events, _ = client.watch("watch/c", start_revision=compacted)
    try:
        next(events)
        check(False, "a watch of what was compacted")
    except etcd3.exceptions.RevisionCompactedError as error:
        check(error.compacted_revision == compacted + 1, error.compacted_revision)


def lease(client):
    granted = client.lease(30)
    client.put("lease/a", "x", lease=granted)
    check(granted.granted_ttl == 30 and 0 < granted.remaining_ttl <= 30 and granted.keys == [b"lease/a"])
    check(list(granted.refresh())[0].TTL == 30)
    check(client.get("lease/a")[1].lease_id == granted.id)
    granted.revoke()
    check(client.get("lease/a") == (None, None))
    check(client.get_lease_info(granted.id).TTL == -1)
    named = client.lease(30, lease_id=123456)
    check(named.id == 123456)
    client.revoke_lease(123456)


def lock(client):
    first, second = client.lock("lock", ttl=20), client.lock("lock", ttl=20)
    check(first.acquire() and first.is_acquired())
    check(not second.acquire(timeout=1))
    acquired = []
    waiting = threading.Thread(target=lambda: acquired.append(second.acquire(timeout=20)))
    waiting.start()
    time.sleep(0.2)
    check(first.release())
    waiting.join()
    check(acquired == [True] and second.is_acquired() and not first.is_acquired())
    check(second.release())


def members(client, count):
    known = list(client.members)
    check(len(known) == count and all(member.name and member.peer_urls and member.client_urls for member in known))


def status(client):
    told = client.status()
    check(told.version and told.leader is not None and told.raft_term > 0 and told.db_size > 0, told)
    check(list(client.list_alarms()) == [])
    check(client.hash() is not None)
    client.defragment()


def snapshot(client):
    image = io.BytesIO()
    client.snapshot(image)
    data = image.getvalue()
    check(hashlib.sha256(data[:-32]).digest() == data[-32:], len(data))


def main():
    endpoints = sys.argv[1].split(",")
    host, port = endpoints[-1].rsplit(":", 1)
    client = etcd3.client(host=host, port=int(port), timeout=20)
    steps = [
        ("kv", kv),
        ("txn", txn),
        ("watch", watch),
        ("lease", lease),
        ("lock", lock),
        ("members", lambda client: members(client, len(endpoints))),
        ("status", status),
        ("snapshot", snapshot),
    ]
    for name, step in steps:
        step(client)
        print("ok", name, flush=True)
    client.close()


main()
