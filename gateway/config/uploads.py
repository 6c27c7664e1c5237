"""Settings of request bodies, input images and the decoder subprocesses."""

from pydantic import Field

from gateway.config.base import SettingsGroup


class UploadSettings(SettingsGroup):
    """Request bodies, input images, and the sandboxed subprocesses that decode them."""

    max_body_bytes: int = Field(
        default=1_048_576, ge=1024, description="The bytes of a request body without images."
    )
    max_upload_bytes: int = Field(
        default=209_715_200,
        ge=1024,
        description="The bytes of a multipart body with images. Uploads are kept in the system's "
        "temporary directory (`TMPDIR`), which takes memory where it is a tmpfs.",
    )
    max_json_upload_bytes: int = Field(
        default=67_108_864,
        ge=1024,
        description="The bytes of a JSON body with images. JSON is parsed in memory, two bodies at "
        "a time.",
    )
    upload_seconds: float = Field(
        default=300.0, gt=0, description="The seconds in which any request body must arrive."
    )
    max_concurrent_uploads: int = Field(
        default=256,
        ge=1,
        description="Bodies with images that are read at once. One tenant gets at most half.",
    )
    max_input_pixels: int = Field(
        default=40_000_000, ge=65_536, description="The pixels of one input image."
    )
    decoder_processes: int = Field(
        default=2,
        ge=1,
        le=64,
        description="The subprocesses per worker that decode input images, and as many more that "
        "process output images.",
    )
    decoder_job_seconds: float = Field(
        default=15.0, gt=0, description="The seconds that decoding one image may take."
    )
    decoder_queue_seconds: float = Field(
        default=20.0, gt=0, description="The seconds that an image may wait for a decoder."
    )
    decoder_memory_bytes: int = Field(
        default=402_653_184,
        ge=134_217_728,
        description="The memory, in bytes, of one decoder of input images beyond the interpreter's "
        "own. The default decodes PNG and JPEG of 40 million pixels and WebP of 14 million; larger "
        "ones are refused as too expensive.",
    )
    download_seconds: float = Field(
        default=20.0,
        gt=0,
        description="The seconds to download an `image_url` of an edit, or an image that a "
        "provider answers as a link.",
    )
