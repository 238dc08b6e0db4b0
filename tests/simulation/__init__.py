"""The real scheduler, block manager, engine loop, engine client and HTTP front end on a virtual clock.

One seed decides everything that happens: requests, faults, how long steps take. See `simulation.world`.
"""
