"""How the records of a zip archive are laid out: PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.16. Knows nothing else."""

from __future__ import annotations

import struct

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
UINT16_MAX = 0xFFFF
UINT32_MAX = 0xFFFFFFFF
"""What a field holds whose value stands in a longer one, elsewhere."""
