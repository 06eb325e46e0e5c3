// Opens a trace of one span in Jaeger's user interface, unfolds the span, prints the page's text and takes a picture of it:
// node look.js PAGE PICTURE
const { chromium } = require(process.env.SCONCE_PLAYWRIGHT);

async function look(page, picture) {
  const browser = await chromium.launch({ executablePath: process.env.SCONCE_CHROMIUM, args: ['--no-sandbox'] });
  try {
    const tab = await browser.newPage({ viewport: { width: 1100, height: 760 } });
    await tab.goto(page);
    await tab.locator('.span-name').first().click();
    // Tags and references are folded as well.
    for (const part of ['Tags:', 'References']) await tab.getByText(part).first().click();
    console.log(await tab.innerText('body'));
    await tab.screenshot({ path: picture });
  } finally {
    await browser.close();
  }
}

look(...process.argv.slice(2)).catch(error => {
  console.error(error);
  process.exit(1);
});
