// Arrange the book on its one page for print: the cover, the contents, the chapters.
// Returns the bookmarks, [level, title, anchor], and what is wrong with the book.
async ({title, author, parts, style}) => {
    const make = (tag, properties = {}, ...children) => {
        const element = Object.assign(document.createElement(tag), properties);
        element.append(...children);
        return element;
    };
    await MathJax.startup.promise;
    const article = document.querySelector("article");
    for (const link of article.querySelectorAll("a.headerlink")) link.remove();

    const front = make("header", {id: "front"}, make("img", {src: "_static/cover.png", alt: `${title}, ${author}`}));
    const root = article.querySelector("h1");
    root.textContent = "About this book";

    for (const {math, typesetRoot} of MathJax.startup.document.math) {
        typesetRoot.setAttribute("role", "img");
        typesetRoot.setAttribute("aria-label", math.trim());
    }
    const plain = heading => {
        const copy = heading.cloneNode(true);
        for (const formula of copy.querySelectorAll("mjx-container")) formula.replaceWith(formula.ariaLabel);
        return copy.textContent;
    };

    const contents = make("nav", {id: "contents"}, make("h1", {textContent: "Contents"}));
    const bookmarks = [];
    const enter = (section, className, level) => {
        const heading = section.querySelector(":scope > :is(h1, h2, h3)");
        const text = make("span", {innerHTML: heading.innerHTML});
        contents.append(make("a", {className, href: `#${section.id}`}, text));
        bookmarks.push([level, plain(heading), section.id]);
    };
    let level = 0;
    for (const chapter of [root.parentElement, ...article.querySelectorAll("span[id^='document-'] + section")]) {
        chapter.classList.add("chapter");
        const mark = chapter.previousElementSibling;
        const part = parts[mark?.id.replace(/^document-/, "")];
        if (part) {
            chapter.before(make("h1", {className: "part", textContent: part}));
            contents.append(make("p", {className: "part", textContent: part}));
            bookmarks.push([0, part, chapter.id]);
            level = 1;
        }
        if (mark) chapter.prepend(mark);
        enter(chapter, "to-chapter", level);
        for (const section of chapter.querySelectorAll(":scope > section")) enter(section, "to-section", level + 1);
    }
    for (const sheet of document.querySelectorAll("link[rel=stylesheet]"))
        if (!/pygments|fonts/.test(sheet.href)) sheet.remove();
    document.head.append(make("style", {textContent: style}));
    document.documentElement.dataset.theme = "light";
    document.body.replaceChildren(front, contents, article);
    await document.fonts.ready;

    const images = [...document.images];
    await Promise.all(images.map(image => image.decode().catch(() => {})));
    const targets = [...document.querySelectorAll("a[href^='#']")].map(link => decodeURIComponent(link.hash.slice(1)));
    const problems = [
        ...images.filter(image => !image.naturalWidth).map(image => `no image ${image.getAttribute("src")}`),
        ...[...document.querySelectorAll(".math:not(:has(mjx-container))")].map(raw => `not typeset: ${raw.textContent}`),
        ...[...document.querySelectorAll("[data-mjx-error]")].map(wrong => `a formula: ${wrong.dataset.mjxError}`),
        ...[...document.querySelectorAll("mjx-container [style*='color: red']")].map(wrong => `a formula: ${wrong.closest("mjx-container").ariaLabel}`),
        ...targets.filter(target => !document.getElementById(target)).map(target => `no anchor ${target}`),
    ];
    return [bookmarks, problems];
}
