"""Decoding off the event loop, in processes that a file may crash.

In: the bytes of a file. Steps: a thread takes a decoder that is free; a second process starts only
while the first is busy, so that one slow file does not hold up all others. Out: the waveform, or
why there is none.
"""

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipeline.audio.decode import Decoded
from pipeline.audio.sandbox import DecoderProcess
from pipeline.audio.settings import Channel, DecodeSettings

_NUM = 2


class Decoders:
    """A few decoder processes, each for one file at a time.

    Args:
        sample_rate_hz: rate of the waveforms.
        max_duration_s: longest recording, in seconds.
        start: makes a decoder.
    """

    def __init__(
        self,
        *,
        sample_rate_hz: int,
        max_duration_s: float,
        start: Callable[[], DecoderProcess] = DecoderProcess,
    ) -> None:
        self._rate_hz = sample_rate_hz
        self._settings = DecodeSettings(max_duration_s=max_duration_s)
        self._free: queue.LifoQueue[DecoderProcess] = queue.LifoQueue()
        for _ in range(_NUM):
            self._free.put(start())
        # As many threads as processes: no thread ever waits for one.
        self._threads = ThreadPoolExecutor(_NUM, thread_name_prefix="decode")

    async def decode(self, audio: bytes, channel: Channel) -> Decoded:
        """The whole waveform.

        Raises:
            RejectError: the file is broken, too long, or crashes its decoder.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode, audio, channel)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        while not self._free.empty():
            self._free.get().__exit__(None, None, None)

    def _decode(self, audio: bytes, channel: Channel) -> Decoded:
        decoder = self._free.get()
        try:
            return decoder.decode_audio(
                audio, replace(self._settings, channel=channel), sample_rate_hz=self._rate_hz
            )
        finally:
            self._free.put(decoder)
