"""The provider kind `kserve`: diffusers behind KServe's v1 and v2 protocols."""
