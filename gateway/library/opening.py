"""Constructs the image keeper and the decoders from the settings."""

from gateway.config import Settings
from gateway.db.engine import Database
from gateway.library.keeping import Keeper
from gateway.library.spool import Spool
from gateway.library.storage import open_store
from gateway.media.decoder import Decoder, DecoderLimits
from gateway.vault.sealing import Vault

FINISH_QUEUE_SECONDS = 600.0
"""Longer than any client waits, because the image is paid for."""
FINISH_MAX_WAITING = 1_000_000
"""More than can be bought at once, so a paid image is never turned away."""
FINISH_MEMORY_BYTES = 2**30
MAX_MADE_PIXELS = 33_554_432
"""Nearly twice the pixels of any model's largest output, which is 12288x1536."""
DRAWING_PROCESSES = 2
DRAWING_SECONDS = 60.0
DRAWING_QUEUE_SECONDS = 300.0


def open_keeper(settings: Settings, database: Database, vault: Vault) -> Keeper:
    """Open the image store, with a spool for the time in which it fails.

    Raises:
        ConfigurationError: the store's address cannot be used.
    """
    return Keeper(
        database,
        open_store(
            settings.image_storage_url, settings.s3_options, beside=settings.resolved_journal_dir
        ),
        Spool(database, vault, settings),
        retry_seconds=settings.store_retry_seconds,
    )


def open_decoder(settings: Settings) -> Decoder:
    """Open the decoder for input images."""
    return Decoder(
        DecoderLimits(
            processes=settings.decoder_processes,
            job_seconds=settings.decoder_job_seconds,
            queue_seconds=settings.decoder_queue_seconds,
            max_waiting=settings.max_waiting_requests,
            max_pixels=settings.max_input_pixels,
            memory_bytes=settings.decoder_memory_bytes,
        )
    )


def open_finisher(settings: Settings) -> Decoder:
    """Open the decoder for output images: untrusted images must not delay paid ones."""
    return Decoder(
        DecoderLimits(
            processes=settings.decoder_processes,
            job_seconds=settings.decoder_job_seconds,
            queue_seconds=FINISH_QUEUE_SECONDS,
            max_waiting=FINISH_MAX_WAITING,
            max_pixels=MAX_MADE_PIXELS,
            memory_bytes=FINISH_MEMORY_BYTES,
        )
    )


def open_sketcher(settings: Settings) -> Decoder:
    """Open the processes that draw for test keys, at a low priority, tenants in turn."""
    return Decoder(
        DecoderLimits(
            processes=min(DRAWING_PROCESSES, settings.decoder_processes),
            job_seconds=DRAWING_SECONDS,
            queue_seconds=DRAWING_QUEUE_SECONDS,
            max_waiting=settings.max_waiting_requests,
            max_pixels=MAX_MADE_PIXELS,
            memory_bytes=FINISH_MEMORY_BYTES,
            program="gateway.media.drawing_process",
        )
    )
