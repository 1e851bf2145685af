"""Worker processes: one job computed by several of them, with the same bytes as by one.

pool.py      starts and ends the processes and gives them jobs
dispatch.py  one job: who computes what, and what happens when one of them is lost
process.py   the controller's side of one process
worker.py    the process itself
nursery.py   where workers on the CPU are forked from
broadcast.py how the anchors' keys and values get from one process to the others
protocol.py  what the messages between controller and workers hold
"""
