"""The commands ``faceshards manifest ...``, one file each."""
