"""A worker without networks: it inverts pixels, and misbehaves as its script says.

Run as `python puppet.py SCRIPT`; SCRIPT is JSON: device to what happens there. Only the standard library is imported,
so that it starts in no time.

    {"cpu:1": {"die": 2}}      ends at its third task
    {"cpu:1": {"hang": 0}}     is silent for ever from its first task on
    {"cpu:1": {"refuse": 1}}   answers its second task with an error
    {"cpu:1": {"die_over": 7}} ends whenever it is given part 7
    {"cpu:0": {"void": true}}  finds, as the leader, that what it sent of the bank is of no use
    {"cpu:2": {"lost": true}}  the bank never arrives
    {"cpu:2": {"deaf": true}}  never says that it is ready
    {"cpu:2": {"waits": true}} has not yet got all of the bank
    {"cpu:0": {"stuck": true}} is held up by its transfers, as with NCCL, until it is told that they are off
"""

import json
import math
import os
import sys
import time

script = json.loads(sys.argv[1])
tasks = 0
generation = 0
has_bank = False
job = None
postponed = []


def read():
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(3)
    message = json.loads(line)
    return message, sys.stdin.buffer.read(message.get("bytes", 0))


def receive():
    return postponed.pop(0) if postponed else read()


def send(message, payload=b""):
    head = message | ({"bytes": len(payload)} if payload else {})
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + payload)
    sys.stdout.buffer.flush()


def invert(payload):
    return bytes(255 - value for value in payload)


def misbehave(message):
    """Whether the task was answered here."""
    global tasks
    number, tasks = tasks, tasks + 1
    if role.get("die") == number or ("part" in message and role.get("die_over") == message["part"]):
        print("something terrible happened", file=sys.stderr, flush=True)
        os._exit(1)
    if role.get("hang") == number:
        time.sleep(1000)
    if role.get("refuse") == number:
        send(
            answer("error")
            | {"part": message.get("part"), "error": "These values are not finite.", "kind": "numerical"}
        )
        return True
    return False


def answer(what):
    facts = {"times_ms": {"frames": 1.0}, "notes": [], "fallbacks": [], "digests": {}, "usage": [], "bank_bytes": 9}
    return {"is": what, "job": job, "part": None, "generation": generation, **facts}


message, _ = receive()
role = script.get(message["device"], {})
if not role.get("deaf"):
    send({"is": "ready", "backend": role.get("backend", "eager")})
while True:
    message, payload = receive()
    what = message["do"]
    if what == "job":
        job, has_bank, anchors = message["job"], not message["params"]["anchors"], message["params"]["anchors"]
        latent_bytes = 4 * math.prod(message["latent_shape"])
    elif what == "bank":
        generation, has_bank = message["generation"], not role.get("lost")
        if not role.get("waits"):
            send(answer("bank") | {"complete": has_bank})
    elif what == "anchors" and not misbehave(message):
        generation, has_bank = message["generation"], True
        if role.get("stuck"):
            while (later := read())[0]["do"] != "bank_off":
                postponed.append(later)
        if role.get("void"):
            send(answer("bank") | {"complete": False, "void": True})
        send(answer("step") | {"stage": "anchors", "done": 1})
        time.sleep(role.get("slow_s", 0))
        latents = bytes(latent_bytes * len(anchors))
        send(answer("anchors") | {"precision": "float32"}, invert(payload) + latents)
    elif what == "part" and not misbehave(message):
        if not has_bank:
            send(answer("undone") | {"part": message["part"]})
            continue
        send(answer("step") | {"stage": "frames", "done": 1})
        latents = bytes([message["part"] % 256]) * latent_bytes * len(message["frames"])
        send(answer("part") | {"part": message["part"]}, invert(payload) + latents)
