"""What can be wrong with a distillation before it starts or while it runs."""


class DistillError(ValueError):
    """A recipe, a student or the data it needs is not as it must be.

    Examples:
        >>> sl.make_recipe("agglomerates", ("uni2_h",))
        Traceback (most recent call last):
            ...
        distill.errors.DistillError: ...
    """
