// One pollutant and horizon at a time. Without scripts every map is shown, one below the other.
"use strict";
const controls = document.querySelector(".controls");
const choose = () => {
  const chosen = new FormData(controls);
  for (const key of ["pollutant", "horizon"]) {
    for (const element of document.querySelectorAll(`[data-${key}]`)) {
      element.hidden = element.dataset[key] !== chosen.get(key);
    }
  }
};
controls.hidden = false;
controls.addEventListener("change", choose);
controls.addEventListener("submit", (event) => event.preventDefault());
choose();
