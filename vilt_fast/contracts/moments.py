"""How the statistics of rows are kept between the kernels that make them and those that use them.

The moments of rows are (2, d / GROUP, rows): the mean and the sum of squared deviations of every GROUP columns of a
row. Groups do not depend on the tile of the product that wrote them, and are combined in order: so neither do the mean
and the variance of a row.
"""

GROUP = 64
