"use strict";

const DOCUMENT = "/v0/pipes/openapi.json";

let system;

// The document lists the endpoints that the token may read: it is read again when a token is entered or removed.
const readAgain = (original) => (payload) => {
  const result = original(payload);
  system.specActions.download(DOCUMENT);
  return result;
};

SwaggerUIBundle({
  url: DOCUMENT,
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // it would send the document's address to a service elsewhere
  plugins: [
    (made) => {
      system = made;
      return { statePlugins: { auth: { wrapActions: { authorize: readAgain, logout: readAgain } } } };
    },
  ],
  requestInterceptor: (request) => {
    if (request.loadSpec) {
      const [entered] = Object.values(system.getSystem().authSelectors.authorized()?.toJS() ?? {});
      if (entered) request.headers.Authorization = `Bearer ${entered.value}`;
    }
    return request;
  },
});
