"""The commands as users type them: `vesselgan COMMAND`, `python -m vesselgan COMMAND`, launch/COMMAND.py."""
