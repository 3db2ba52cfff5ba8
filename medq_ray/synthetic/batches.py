"""The files and batches of the simulated oracle, as OpenAI's Batch API has them; it begins with each at once."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

from fastapi.responses import Response

TOGETHER = 8
"""Requests of a batch that are answered at the same time."""


class Batches:
    """Files and batches by name, held in memory. Belongs to one event loop."""

    def __init__(self, reply: Callable[[dict, str | None], Awaitable[Response]]):
        """reply: to the body of one request, and its name."""
        self.reply = reply
        self.files: dict[str, str] = {}
        self.known: dict[str, dict] = {}
        self.tasks: set[asyncio.Task] = set()

    def upload(self, content: bytes) -> dict:
        name = f"file-{len(self.known)}-{time.time_ns()}"
        self.files[name] = content.decode()
        return {"id": name, "object": "file", "bytes": len(content), "created_at": int(time.time()),
                "filename": "batch.jsonl", "purpose": "batch", "status": "processed"}  # fmt: skip

    def create(self, file: str) -> dict:
        """Start the batch of a file."""
        lines = [json.loads(line) for line in self.files[file].splitlines()]
        batch = {"id": f"batch-{len(self.known)}", "object": "batch", "endpoint": "/v1/chat/completions",
                 "input_file_id": file, "completion_window": "24h", "status": "in_progress",
                 "created_at": int(time.time()), "output_file_id": None, "error_file_id": None,
                 "request_counts": {"total": len(lines), "completed": 0, "failed": 0}}  # fmt: skip
        self.known[batch["id"]] = batch
        task = asyncio.create_task(self.work(batch, lines))
        self.tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self.tasks.discard)
        return batch

    async def work(self, batch: dict, lines: list[dict]) -> None:
        answered, failed, turns = [], [], asyncio.Semaphore(TOGETHER)

        async def one(line: dict) -> None:
            async with turns:
                response = await self.reply(line["body"], line["custom_id"])
            try:
                body, code = json.loads(response.body), response.status_code
            except ValueError:  # simulated nonsense
                body, code = {"error": {"message": "simulated nonsense"}}, 500
            good = code == 200
            row = {"custom_id": line["custom_id"], "response": {"status_code": code, "body": body}, "error": None}
            (answered if good else failed).append(json.dumps(row))
            batch["request_counts"]["completed" if good else "failed"] += 1

        await asyncio.gather(*map(one, lines))
        for field, rows in (("output_file_id", answered), ("error_file_id", failed)):
            if rows:
                batch[field] = self.upload("\n".join(rows).encode())["id"]
        batch["status"] = "completed"
