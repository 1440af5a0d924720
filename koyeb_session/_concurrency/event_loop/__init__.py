"""The awaited twins, for the event loops of asyncio and trio, through anyio."""
