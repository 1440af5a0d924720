"""Set httpx up: certificates, proxies, and deadlines on sockets."""
