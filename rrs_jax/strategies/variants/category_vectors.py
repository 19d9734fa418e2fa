"""A safety vector for each category of questions (`rrs.target=category`) in place of one for all."""

import numpy as np

from rrs_jax.errors import UserError
from rrs_jax.strategies.variants.variant import Materials, Variant


class CategoryVectors(Variant):
    @classmethod
    def asked(cls, samples, config) -> bool:
        return config.rrs.target == "category"

    def check(self) -> None:
        self.categories()

    def vectors(self, arrays, find_vector) -> dict:
        """`category_vectors` (categories, D), in the order of `categories`."""
        found = []
        for name in self.categories():
            of_it = np.array([category == name for category in self.samples.categories])
            refused = arrays["harmful_refusal"][of_it[self.samples.harmful]]
            benign = arrays["benign"][of_it[self.samples.mirrored]]
            found.append(np.asarray(find_vector(refused, benign).vector))
        return {"category_vectors": np.stack(found)}

    def prepare(self, materials: Materials) -> None:
        place = {name: i for i, name in enumerate(self.categories())}
        places = [place.get(name, 0) for name in self.samples.categories]
        materials.vectors = materials.arrays["category_vectors"][places]

    def categories(self) -> list[str]:
        """Categories of the moved samples. Raises UserError where one lacks harmful or benign questions."""
        names = self.samples.categories
        harmful, mirrored = (
            {names[i] for i in np.flatnonzero(mask)} for mask in (self.samples.harmful, self.samples.mirrored)
        )
        if lone := sorted(harmful ^ mirrored):
            raise UserError(
                f"rrs.target: category needs harmful and benign questions of each, which {', '.join(lone)}"
                " lacks; complete the manifest or give mean or own."
            )
        return sorted(harmful)
