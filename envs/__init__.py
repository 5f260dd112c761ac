"""The simulators: adapters, scripted experts, and the child process that runs them.

Importing this package needs numpy only; each simulator's own packages are imported
inside its worker. Everything a worker imports stays compatible with Python 3.8.
"""
