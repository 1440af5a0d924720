"""Every fault of a network and of a service, for every operation, over real sockets."""
