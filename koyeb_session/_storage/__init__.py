"""Write tokens for the stores: records, files, keyring entries and Redis scripts."""
