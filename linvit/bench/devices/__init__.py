"""Scripts that measure on a device without linvit; :mod:`linvit.bench.on_device` hands them out."""
