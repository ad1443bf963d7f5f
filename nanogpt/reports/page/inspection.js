// The page of `nanogpt inspect`.

import { Inside } from "./inside.js";

const inspection = JSON.parse(document.getElementById("data").textContent);
document.getElementById("title").textContent = inspection.title;
new Inside(document.getElementById("inside")).show(inspection);
