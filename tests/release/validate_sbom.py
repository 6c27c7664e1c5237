"""Validate a bill of materials against CycloneDX' own schema. Runs in .venv/release.

.venv/release/bin/python tests/release/validate_sbom.py FILE
"""

import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(Path(sys.argv[1]).read_text("utf-8"))
if error is not None:
    sys.exit(f"{sys.argv[1]} is not CycloneDX 1.6: {error}")
