"""Where a session's token is kept between processes."""
