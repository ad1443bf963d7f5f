"""The lab: a local web page that trains models and shows what happens inside them."""
