// Tables and code that are wider than the page can be reached and scrolled with the keyboard. The theme makes tables scroll without
// that, and takes it from code that it has not shown yet.
const reachable = () =>
  document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach(e => {
    if (e.scrollWidth > e.clientWidth && !e.hasAttribute("tabindex")) e.tabIndex = 0;
  });
new MutationObserver(reachable).observe(document.body, {
  attributes: true, attributeFilter: ["tabindex"], childList: true, subtree: true,
});
addEventListener("resize", reachable);
reachable();
