"""An image -> a thumbnail inside a page.

In: a decoded image. Out: attributes of an HTML element. It reads no file and knows nothing of reports.
"""

from __future__ import annotations

import base64
import io

from PIL import Image

THUMBNAIL = 160  # pixels, longest side


def thumbnail(image: Image.Image) -> dict[str, str]:
    """Attributes of an `img` element: a small JPEG as a data URI, without the file's metadata, and its size in pixels.

    It resizes the given image itself, not a copy.
    """
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.info.clear()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return {"src": f"data:image/jpeg;base64,{data}", "width": str(image.width), "height": str(image.height)}
