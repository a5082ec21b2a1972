"""The imager: reads the used blocks of a cut or of an unmounted image, once, in large requests, and writes them."""
