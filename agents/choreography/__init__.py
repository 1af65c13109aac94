"""The choreographed style: services react to each other's events, and nobody coordinates them.

Each module is the part of one service. They share the order's partition, and so one unit of work; whose orders they
are is stamped on the order, so that one that began in this style ends in it.
"""
