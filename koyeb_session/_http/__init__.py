"""What httpx is given: certificates, proxies, and deadlines on sockets."""
