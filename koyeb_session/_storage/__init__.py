"""How stores write a token: records, files, keyring entries, Redis scripts."""
