"""For event loops: asyncio and trio, through anyio."""
