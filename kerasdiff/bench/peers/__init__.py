"""What kerasdiff is compared with, one file each; the interface is in `kerasdiff.bench.worker`."""
