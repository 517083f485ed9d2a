"""Where things lie that are on no disk of this machine: objects in buckets, by addresses such as s3://bucket/prefix."""
