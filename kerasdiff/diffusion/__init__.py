"""From a request to images: conditioning, the loop over steps, decoding; knows no TensorFlow."""
