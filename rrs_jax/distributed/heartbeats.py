"""Signs of life that processes give one another: a process that was killed tells nobody."""

import contextlib
import threading
import time

BEAT_SECONDS = 1.0


class Heartbeats(threading.Thread):
    """Counts up in JAX's key-value store and watches the other processes' counts, in the background.

    Args:
      client: JAX's distributed runtime client.
      index, count: this process's number, and how many there are.
    """

    def __init__(self, client, index: int, count: int):
        super().__init__(daemon=True)
        self.client, self.index = client, index
        self.heard = dict.fromkeys(set(range(count)) - {index}, time.monotonic())
        self.counts: dict[int, str] = {}
        self.stopped = threading.Event()

    def run(self) -> None:
        count = 0
        while not self.stopped.wait(BEAT_SECONDS):
            count += 1
            with contextlib.suppress(Exception):  # the service ends with its process
                self.client.key_value_set(f"rrs_jax/alive/{self.index}", str(count), allow_overwrite=True)
                for key, text in self.client.key_value_dir_get("rrs_jax/alive"):
                    index = int(key.split("/")[-1])
                    if index != self.index and text != self.counts.get(index):
                        self.counts[index], self.heard[index] = text, time.monotonic()

    def silent(self, seconds: float) -> list[int]:
        """Returns the processes that gave no sign for so long."""
        now = time.monotonic()
        return sorted(index for index, when in self.heard.items() if now - when >= seconds)
