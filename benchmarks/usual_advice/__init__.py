"""Cases for what is usually advised and no other benchmark measures; `python . benchmarks.usual_advice` runs them."""
