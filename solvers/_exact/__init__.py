"""
The exact solver's compiled code; :mod:`solvers.exact` is its face.

The problem is that of docs/model.md, "The scheduling step": choose a batch size B and the
requests of the batch. Terms, each used in one sense only:

gain, weight
    What serving a request is worth, g, and the KV tokens that it needs, w.
price
    What a KV token (memory price) or a slot of the batch (slot price) is worth.
bound
    What prices prove no plan at a batch size to exceed (:mod:`solvers.prices`).
reduced gain, base
    A gain less the price of the request's memory and slot. The base are the requests whose
    reduced gain is positive: with prices, each request chooses for itself.
flip, loss
    To flip a request is to add it to the base or to take it out. The bound falls by the
    flip's loss, |reduced gain|. A plan is the base with some requests flipped, and worth

        bound - losses of the flips - memory price * free tokens - slot price * free slots,

    its *total loss* less than the bound.
incumbent, cutoff
    The best plan so far, and what another must be worth more than to be wanted.
core, item
    The requests whose loss is small enough to be flipped in a plan that is wanted: the items
    of the search. They are few.
state
    A set of flips in the lists of the search.
hill, peak
    Batch sizes along which the bound rises and then falls, and where it is largest.
drift
    The change of a price from one batch size to the next, which is steady.
settled
    Said of a batch size where nothing that is wanted is left to find.

The steps of the algorithm, and where they are:

1. From an instance to arrays, and back to a plan: ``step``. What the arrays are: ``problem``.
2. The order of batch sizes: ``sweep``, which begins at the ``peak`` and makes a ``jump`` over
   ranges that the prices rule out.
3. The best prices and the bound of one batch size: ``prices``, with ``selection``.
4. One batch size settled (``settle``): by ``search`` (Exact) or by ``rounding`` (PriceRounding).
   What is wanted: ``worth``. The requests that may be flipped: ``core``. Sets of flips:
   ``lists``, kept short by ``limits``.

``jit`` says how all this is compiled.
"""
