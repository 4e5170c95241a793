"""Terms: losses as pure functions, one file per family: `from twofold.terms import divergence`.

Three rules hold in every file unless a docstring says otherwise:

- A likelihood or a distance is summed over all dimensions of an example and returned per example, shape (batch,), in
  nats; the caller takes the batch mean. A function that returns a scalar says so.
- Every term is to be minimised.
- Shapes must agree exactly: nothing is broadcast in silence, because a (batch, 1) against a (batch,) is a
  (batch, batch) loss that still trains. Wrong shapes raise `ValueError` with both shapes.
"""
