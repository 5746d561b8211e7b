"""The commands as users type them: `vesselgan COMMAND`, `python -m vesselgan COMMAND`, launch/COMMAND.py.

Messages and help name the first: it is there with a checkout and without.
"""
