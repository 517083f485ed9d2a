"""The stages of a build, one file each: functions from files to files."""
