"""Send requests: connections, the queue for them, and the operations of the API."""
