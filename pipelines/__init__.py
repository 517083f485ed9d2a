"""From RecordIO sets and image folders to deduplicated, identity-balanced MindRecord shards with Parquet manifests."""
