"""The commands, one file each, named as the command: functions that take paths and return a result."""
