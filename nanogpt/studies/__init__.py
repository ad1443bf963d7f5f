"""The ladder and the scaling law: experiments that train many models to answer a question."""
